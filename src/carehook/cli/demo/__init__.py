"""`carehook demo`: a real service, a real receiver and one consultation, on this machine, to be seen and judged."""
