"""Records <-> tar shards with an index beside each."""
