"""The web process: answers Label Studio's calls. Never trains, and never imports worker/."""
