.space big, 64, at=4294967296
halt
;~ end of segment big: wanted at most dram.bytes = 4294967296, found 4294967360
