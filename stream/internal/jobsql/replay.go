package jobsql

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
)

// refuseTimeout bounds what is left to do when a handler has panicked, whose context may have ended. If it is over, the record keeps its mark, and the
// worker has it refused itself.
const refuseTimeout = 5 * time.Second

// Replay commits one quarantined record, as CommitReplay of a sink must: commit calls the handler and takes the mark off in one transaction. If the
// handler refuses the record, or panics, refuse has it wait again with the new reason, and the error or the panic goes on to the caller.
func Replay(ctx context.Context, l stream.Lease, b *stream.Batch, commit func(r stream.Record) error, refuse func(ctx context.Context, l stream.Lease, seq uint64, a stream.Attempt) error) error {
	r, err := jobrule.Replay(l, b)
	if err != nil {
		return err
	}
	returned := false
	defer func() {
		if returned {
			return
		}
		p := recover() // by now the transaction was rolled back
		if p == nil {
			return // runtime.Goexit
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refuseTimeout)
		defer cancel()
		_ = refuse(ctx, l, r.Seq, stream.NewAttempt(stream.ClassPanic, &stream.PanicError{Value: p, Stack: debug.Stack()}))
		panic(p)
	}()
	err = commit(r)
	returned = true
	if stream.VerdictOf(err) == stream.VerdictSkip {
		err = errors.Join(err, refuse(ctx, l, r.Seq, stream.NewAttempt(stream.ClassRefused, err)))
	}
	return err
}
