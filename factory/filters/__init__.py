"""Filters: each measures something of a sample and may reject it with a reason, which is counted."""
