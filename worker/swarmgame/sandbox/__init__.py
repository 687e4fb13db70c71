"""Running untrusted code: a fork server whose children have no network, few files and bounded resources."""
