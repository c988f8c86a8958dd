"""`python -m serve_app.power_agent`: the agent with nvidia-ml-py alone installed."""

import sys

from serve_app.power_agent.agent import main

sys.exit(main())
