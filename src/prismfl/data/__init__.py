"""Images and how they are spread over clients."""
