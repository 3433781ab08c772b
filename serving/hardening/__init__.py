"""What closes the doors that Ray Serve and HAProxy leave open."""
