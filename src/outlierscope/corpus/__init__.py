"""What is fed to the model: documents or images, cut into numbered batches."""
