"""The sections: what a pipeline is built of, one file a section or a family of them."""
