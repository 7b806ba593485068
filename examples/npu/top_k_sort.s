; The routing of 8 tokens over 4 modules: each token takes its best two, and a counting sort brings the tokens of a module
; together: a table with a record {module, first row, count, 0} per module, a list of tokens and a list of gates.

.equ T, 8                           ; tokens
.equ C, 4                           ; modules
.equ K_MAX, 2                       ; modules of a token
.equ PAIRS, T*K_MAX                 ; (token, module) pairs

.equ scores_there, t1               ; LOAD -> ROUTE
.equ lists_there, t2                ; ROUTE -> STORE
.equ table_there, t3                ; ROUTE -> sequencer

; The scratchpad.
.equ SCORES, 0                      ; f32 [T, C]
.equ MASK, 256                      ; u8 [T, C]: 1 where a token takes a module
.equ GATES, 512                     ; f32 [T, C]: the scores of those, divided by their sum
.equ TABLE, 1024                    ; C + 1 records of 16 bytes
.equ LIST, 2048                     ; u32 [PAIRS]: tokens, module by module
.equ LIST_GATES, 4096               ; f32 [PAIRS]: their gates

; Nobody chooses module 2: the loop below counts that.
.data scores
.f32 0.4, 0.3, 0.1, 0.2
.f32 0.1, 0.6, 0.1, 0.2
.f32 0.5, 0.2, 0.0, 0.3
.f32 0.3, 0.3, 0.1, 0.3             ; a tie: the lower modules, 0 and 1
.f32 0.2, 0.4, 0.1, 0.3
.f32 0.7, 0.1, 0.0, 0.2
.f32 0.6, 0.3, 0.0, 0.1
.f32 0.1, 0.4, 0.0, 0.5
.space table, (C+1)*16
.space list, PAIRS*4
.space list_gates, PAIRS*4

.op "load scores"
    li r1, scores
    load sp[SCORES], dram[r1], row_bytes=T*C*4 post(scores_there)

.op "top-k"
    li r2, T                        ; counts and k are registers, so that they can come from the input
    li r3, K_MAX
    li r4, PAIRS                    ; the list has room for so many; more would be a fault
    r.top_k sp[MASK], sp[GATES], sp[SCORES], cols=C, k=r3, rows=r2, norm wait(scores_there)

.op "counting sort"
    r.group sp[TABLE], sp[LIST], sp[MASK], cols=C, most=r4, rows=r2 post(table_there)
    r.compact sp[LIST_GATES], sp[MASK], sp[GATES], cols=C, most=r4, rows=r2 post(lists_there)

.op "store"
    li r5, table
    li r6, list
    li r7, list_gates
    sync store wait(lists_there)    ; ROUTE completes in order, so the table is there too
    store dram[r5], sp[TABLE], row_bytes=(C+1)*16
    store dram[r6], sp[LIST], row_bytes=PAIRS*4
    store dram[r7], sp[LIST_GATES], row_bytes=PAIRS*4

; The sequencer reads the table as well: r10 becomes the number of modules that somebody chose.
.op "count modules"
    sync sequencer wait(table_there)
    li r10, 0
    li r11, TABLE+8                 ; the count of record 0
    loop r12, count=C
        lds r13, sp[r11], max=T     ; at most T tokens can choose a module: a larger count is a fault
        skip_if_zero r13, nobody
        add r10, r10, 1
nobody: add r11, r11, 16
    end
.op ""
    halt
