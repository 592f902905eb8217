"""The engine: distributes shards over Ray actors until all are finished. It knows nothing about images."""
