"""Who is told, and how: organizations, their endpoints, and how a request to each is authenticated."""
