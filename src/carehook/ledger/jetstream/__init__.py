"""NATS JetStream, which tells the workers of many machines which endpoints may have something due."""
