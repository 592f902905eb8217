"""The engine: distributes shards over Ray actors until all are done. It knows nothing about images."""
