"""Shards or record directories -> training samples, in an order that is a pure function of the seed."""
