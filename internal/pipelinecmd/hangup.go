package pipelinecmd

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// hangups acts on SIGHUP, which otherwise ends a process: file sinks reopen their files. When a terminal is closed it is a stop, as SIGTERM is.
type hangups struct {
	running atomic.Pointer[reopener]
}

// reopener has file sinks look at their files.
type reopener interface {
	Reopen(ctx context.Context) error
}

// started says what runs from now on.
func (h *hangups) started(r reopener) { h.running.Store(&r) }

// watch acts on signals until stop is called.
func (h *hangups) watch(ctx context.Context, log *slog.Logger, terminal bool) (stop func()) {
	terminal = terminal && !signal.Ignored(syscall.SIGHUP) // as under nohup
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
			if terminal {
				if self, err := os.FindProcess(os.Getpid()); err == nil {
					_ = self.Signal(syscall.SIGTERM)
				}
				return
			}
			h.reopen(ctx, log)
		}
	}()
	return func() {
		signal.Stop(signals)
		cancel()
		<-ended
	}
}

func (h *hangups) reopen(ctx context.Context, log *slog.Logger) {
	r := h.running.Load()
	if r == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := (*r).Reopen(ctx); err != nil {
		log.Warn("SIGHUP: files not reopened, the next write tries again", "error", err)
		return
	}
	log.Info("SIGHUP: files reopened")
}
