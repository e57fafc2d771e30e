//! Takes OTLP requests off the network and hands them on as bytes with their summaries
