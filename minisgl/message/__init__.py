"""What the server's processes say to each other: typed records, and the sockets they travel on."""
