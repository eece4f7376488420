"""What a data set is: images, captions and buckets."""
