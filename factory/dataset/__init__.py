"""What a dataset consists of on disk or in a bucket, and in which state it is."""
