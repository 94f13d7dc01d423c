package commandline

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

// SignalError is the cause of a command's context when a signal ended it.
type SignalError struct{ Signal syscall.Signal }

// Error implements error.
func (e SignalError) Error() string {
	switch e.Signal {
	case syscall.SIGINT:
		return "interrupted (SIGINT)"
	case syscall.SIGTERM:
		return "terminated (SIGTERM)"
	}
	return fmt.Sprintf("ended by signal %v", e.Signal)
}

// Is makes the error one of a context that was cancelled.
func (e SignalError) Is(target error) bool { return target == context.Canceled }

// ExitCode is what shells use for a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
func (e SignalError) ExitCode() int { return 128 + int(e.Signal) }

type signalKey struct{}

// signals are those of a command that is running.
type signals struct {
	second  chan struct{} // closed with the second signal, if somebody waits for it
	awaited atomic.Bool
}

// SecondSignal returns a channel that is closed when a second signal comes. Without a call of it a second signal ends the process at once. The caller
// must end soon after.
func SecondSignal(ctx context.Context) <-chan struct{} {
	s, ok := ctx.Value(signalKey{}).(*signals)
	if !ok {
		return nil
	}
	s.awaited.Store(true)
	return s.second
}

// withSignals returns a context that ends with SIGINT and SIGTERM, with a SignalError as its cause.
func withSignals(parent context.Context) context.Context {
	s := &signals{second: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(context.WithValue(parent, signalKey{}, s))
	came := make(chan os.Signal, 2)
	signal.Notify(came, syscall.SIGINT, syscall.SIGTERM)
	go func() { // ends with the process
		first, _ := (<-came).(syscall.Signal)
		cancel(SignalError{first})
		second, _ := (<-came).(syscall.Signal)
		if s.awaited.Load() {
			close(s.second)
		}
		// Also a third: the process ends as if it had not waited for any.
		signal.Reset(syscall.SIGINT, syscall.SIGTERM)
		if !s.awaited.Load() {
			_ = syscall.Kill(os.Getpid(), second)
		}
	}()
	return ctx
}
