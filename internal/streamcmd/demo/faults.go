package demo

import (
	"context"
	"database/sql"
	"net/url"
	"path/filepath"
	"syscall"
	"time"
)

func (d *demo) cut() {
	n := d.proxy.cut()
	d.say("CUT       %d connections between the services are reset, at record %s", n, comma(d.job.Progress.Records))
}

func (d *demo) restartProducer() {
	d.say("RESTART   the producer is killed (SIGKILL), at record %s", comma(d.job.Progress.Records))
	d.kill(d.producer, "restart", func() {
		d.in(500*time.Millisecond, func() {
			if err := d.start(d.producer); err != nil {
				d.say("%v", err)
				return
			}
			d.say("the producer is there again; it remembers nothing, and needs not to")
		})
	})
}

// kill kills a child and goes on when it is gone.
func (d *demo) kill(c *child, why string, then func()) {
	c.killed = why
	_ = c.cmd.Process.Kill()
	gone := c.gone
	d.helpers.Go(func() { <-gone; d.tell(then) })
}

func (d *demo) stopWorker() {
	w := d.owner
	if w == nil {
		w = d.workers[0]
	}
	select {
	case <-w.gone: // just now it does not run
		d.in(200*time.Millisecond, d.stopWorker)
		return
	default:
	}
	d.say("SIGTERM   %s is stopping, at record %s", w.name, comma(d.job.Progress.Records))
	w.killed = "sigterm"
	begun, gone, cmd := time.Now(), w.gone, w.cmd
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		_ = w.cmd.Process.Kill() // a system without signals
	}
	d.helpers.Go(func() {
		<-gone
		d.tell(func() {
			d.say("%s has committed what was in flight and ended after %v (%v)", w.name, time.Since(begun).Round(time.Millisecond), cmd.ProcessState)
			d.again(w, 300*time.Millisecond)
		})
	})
}

func (d *demo) killBroker() {
	if d.broker == nil {
		d.say("BROKER    the broker at --notifier is yours: it is not killed; do it now, if you like")
		return
	}
	d.say("BROKER    the broker is killed (SIGKILL), at record %s; workers look into the job store every half second anyway", comma(d.job.Progress.Records))
	d.kill(d.broker, "broker", func() {
		d.in(1500*time.Millisecond, func() {
			if err := d.start(d.broker); err != nil {
				d.say("%v", err)
				return
			}
			d.say("the broker is available again; no stream was affected")
		})
	})
}

func (d *demo) breakDatabase() {
	if d.schema != "" {
		var n int
		err := d.store.Postgres.Pool().QueryRow(d.ctx, `select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1`, d.schema+"_worker").Scan(&n)
		if err != nil {
			d.say("DATABASE  its connections could not be ended: %v", err)
			return
		}
		d.say("DATABASE  Postgres ends the %d connections of the workers, at record %s", n, comma(d.job.Progress.Records))
		return
	}
	at := d.job.Progress.Records
	d.say("DATABASE  another process locks the SQLite file for 1.5 s, at record %s", comma(at))
	d.helpers.Go(func() {
		err := lockSQLite(d.ctx, d.adminDSN, 1500*time.Millisecond)
		d.tell(func() {
			if err != nil {
				d.say("the lock was refused: %v", err)
				return
			}
			d.say("the lock is gone; the commits have waited for it")
		})
	})
}

// lockSQLite holds the right to write.
func lockSQLite(ctx context.Context, path string, d time.Duration) (err error) {
	name := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: url.Values{"_pragma": {"busy_timeout(5000)"}, "_txlock": {"immediate"}}.Encode()}
	db, err := sql.Open("sqlite", name.String())
	if err != nil {
		return err
	}
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return nil
}
