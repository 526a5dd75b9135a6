"""The real world behind the ports: hivemind's libp2p daemon and DHT, a key pair on disk, the machine's clock.

The only room that imports hivemind. It knows nothing of rounds, rosters or training. Importing the package is cheap;
hivemind itself is loaded when a node is opened (see ``hivemind_light``). Open ``node.py`` first.
"""
