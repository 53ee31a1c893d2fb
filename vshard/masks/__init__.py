"""Depth -> occlusion ("non-warp") masks; the recipe's draws; the crops."""
