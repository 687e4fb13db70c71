"""Communication between peers: a node, its membership, and the exchange of contributions over several transports."""
