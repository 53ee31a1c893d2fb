"""Video file -> facts -> plan -> sequences of RGB frames."""
