package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// ServeHTTP answers requests at listener until ctx ends; requests that are being answered then have grace to finish.
func ServeHTTP(ctx context.Context, listener net.Listener, h http.Handler, log *slog.Logger, grace func() time.Duration) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), // net/http would write plain text to standard error
	}
	closed := make(chan error, 1) // Serve returns before Shutdown does
	defer context.AfterFunc(ctx, func() {
		stop, cancel := context.WithTimeout(context.Background(), grace())
		defer cancel()
		err := server.Shutdown(stop)
		if err != nil { // requests that outlast the grace are cut: a probe that hangs must not keep the process
			err = server.Close()
		}
		closed <- err
	})()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-closed
}
