from surogate_core.cli.main import main

main()
