"""What PostgreSQL does in its own way: a batch is one statement, in one trip with one commit."""
