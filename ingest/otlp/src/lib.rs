//! OTLP bytes to borrowed views: the walk, extraction of kept spans, transcoding, decompression
