"""The command ``minires lab``: the page in your browser, with any weights."""

import contextlib
from argparse import Namespace

from minires import download, options
from minires.notice import tell
from minires.options import Parser


def add_lab(parser: Parser) -> None:
    """Add the options of `lab`."""
    text = "a photograph to begin with. Default: a cat"
    parser.add_argument("image", nargs="?", type=options.path, metavar="IMAGE", help=text)
    text = f"a name that 'minires weights list' shows, or a file. Default: {download.FALLBACK}"
    parser.add_argument("--weights", default=download.FALLBACK, metavar="NAME|PATH", help=text)
    options.own_network(parser)
    options.offline(parser)
    text = "the server's port. Default: any that is free"
    parser.add_argument("--port", type=options.at_least(0), default=0, metavar="N", help=text)
    text = "only print the address"
    parser.add_argument("--no-browser", action="store_true", help=text)


def lab(arguments: Namespace) -> int:
    """Follow a photograph through the network, in your browser."""
    import webbrowser  # here, because these take long to import

    from minires.lab.export import export_network
    from minires.lab.serve import make_server, site

    own = options.own(arguments)
    files = site(export_network(arguments.weights, arguments.image, **own))
    with make_server(files, arguments.port) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        print(url, flush=True)
        tell("minires: the lab is at this address until you press Ctrl-C")
        if not arguments.no_browser:
            webbrowser.open(url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
