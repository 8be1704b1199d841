"""The platform: connects to the cluster, and joins the stages in pipeline.py."""
