"""The engine: shards spread over Ray actors until all are done. It knows no pixels."""
