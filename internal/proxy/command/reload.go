package command

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/levada-io/levada/internal/proxy/config"
)

// reload reads the configuration again after SIGHUP, and when its file has changed.
func (r *run) reload(ctx context.Context, hangUp <-chan os.Signal) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	r.file.use()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangUp:
			r.file.use()
			path := r.proxy.Config().AccessLog.Path
			if r.file.path != "" {
				path = r.load(ctx)
			}
			r.log.Reopen(path)
		case <-look.C:
			switch found, err := r.file.check(time.Now()); found {
			case changed:
				if was, path := r.proxy.Config().AccessLog.Path, r.load(ctx); path != was {
					r.log.Reopen(path)
				}
			case goneFile:
				r.logger.Warn("configuration file cannot be read, the configuration that was loaded before stays in force", "file", r.file.path, "error", err)
			case backFile:
				r.logger.Info("configuration file can be read again", "file", r.file.path)
			}
		}
	}
}

// load puts the file in force, if it can be, and returns the path of the access log that is then to be written.
func (r *run) load(ctx context.Context) (logPath string) {
	old := r.proxy.Config()
	next, err := r.checked(config.Load(r.file.path))
	if err == nil {
		err = r.swap(next)
	}
	if r.metrics.Reloaded(err); err != nil {
		var problems config.Problems
		if errors.As(err, &problems) {
			for _, p := range problems {
				r.logger.Error("the changed configuration is not used", "problem", p.Error())
			}
		} else {
			r.logger.Error("the changed configuration is not used", "error", err)
		}
		return old.AccessLog.Path
	}
	if r.tracing != nil {
		r.tracing.SetSample(next.Tracing.Sample)
	}
	r.watchLog(next.AccessLog.Path)
	return next.AccessLog.Path
}

// swap puts a configuration in force. With an error, everything is as it was before.
func (r *run) swap(next *config.Config) error {
	change, err := r.admin.prepare(next.Admin)
	if err != nil {
		return err
	}
	if err := r.proxy.Reload(next); err != nil {
		return errors.Join(err, change.undo())
	}
	change.commit()
	return nil
}
