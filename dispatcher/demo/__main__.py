"""The process of the simulated city: `dispatcher demo` starts `python -m dispatcher.demo`."""

import uvloop

from dispatcher.demo import city_process

if __name__ == "__main__":
    uvloop.run(city_process.main())
