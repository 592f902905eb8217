"""The content path of one shard: generate, ground, filter, encode. It knows no engine and no disk."""
