m.pass sp[0], acc[0], rows=1, k=16  ;~ array: wanted a tile of weights on all ways here, found none
halt
