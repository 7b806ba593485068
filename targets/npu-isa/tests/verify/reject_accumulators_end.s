m.preload i8, w[0], k=16, n=16
m.pass sp[0], acc[255], rows=2, k=16  ;~ operand acc writes acc[256]: wanted below acc[256] on edge-16, found rows up to 257
halt
