"""The city's process: `python -m dispatcher.demo`, started by `dispatcher demo`."""

import uvloop

from dispatcher.demo import city

if __name__ == "__main__":
    uvloop.run(city.main())
