package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
)

// outcome is what the verification found.
type outcome struct {
	OK         bool             `json:"ok"`
	Seconds    float64          `json:"seconds"`
	Users      streamtable.Sums `json:"users"`
	Table      uint64           `json:"table"`
	Quarantine uint64           `json:"quarantine"`
	Copied     streamtable.Sums `json:"copied"`
	Lost       uint64           `json:"lost"`
	Twice      uint64           `json:"twice"`
	Unexpected uint64           `json:"unexpectedInQuarantine"`
	Attempts   int              `json:"attempts"`
	Deaths     int              `json:"deaths"`
}

// verify compares the copy with the original, which it makes once more.
func (d *demo) verify() error {
	took := time.Since(d.begun)
	d.tellQuarantine()
	if d.live {
		d.out.Draw(d.progress(time.Now()))
		d.out.Keep()
	}
	o := outcome{Seconds: took.Seconds(), Users: d.users.sums(), Attempts: d.job.Attempts, Deaths: d.deaths}
	table, err := d.store.OpenTable(d.ctx, tableName)
	if err != nil {
		return err
	}
	defer table.Close()
	if err := d.compare(&o, table); err != nil {
		return err
	}
	o.OK = o.Lost == 0 && o.Twice == 0 && o.Unexpected == 0 && o.Copied.Digest == o.Users.Digest
	if err := d.report(&o); err != nil {
		return err
	}
	if !o.OK {
		return errors.New("the copy is not the original")
	}
	return nil
}

// compare counts the rows of the copy and what is in quarantine. Each user must be in one of them, once.
func (d *demo) compare(o *outcome, table streamtable.Reader) error {
	seen := make([]bool, d.users.count+1)
	mark := func(seq uint64) {
		switch {
		case seq == 0 || seq > uint64(d.users.count) || seen[seq]:
			o.Twice++
		default:
			seen[seq] = true
		}
	}
	for r, err := range table.Rows(d.ctx, d.job.ID, false) {
		if err != nil {
			return err
		}
		o.Table++
		o.Copied.Add(r)
		mark(r.Seq)
	}
	rows, err := d.store.Offsets().Quarantined(d.ctx, d.job.ID, d.users.count)
	if err != nil {
		return err
	}
	for _, q := range rows {
		o.Quarantine++
		o.Copied.Add(stream.Record{Seq: q.Seq, Key: q.Key, Value: q.Payload})
		mark(q.Seq)
		if d.users.notes[q.Seq] == "" {
			o.Unexpected++
		}
	}
	for _, there := range seen[1:] {
		if !there {
			o.Lost++
		}
	}
	return nil
}

// report prints the outcome.
func (d *demo) report(o *outcome) error {
	if d.json {
		return commandline.WriteJSON(d.out, false, o)
	}
	equal := "equal"
	if o.Copied.Digest != o.Users.Digest {
		equal = "NOT EQUAL"
	}
	d.plain("\nThe copy, compared with the original:")
	d.plain("  users       %9s   digest %s", comma(uint64(d.users.count)), o.Users.Digest)
	d.plain("  copied      %9s", comma(o.Table))
	d.plain("  quarantine  %9s   with payload and reason", comma(o.Quarantine))
	d.plain("  together    %9s   digest %s: %s", comma(o.Copied.Records), o.Copied.Digest, equal)
	d.plain("  lost        %9s\n  twice       %9s", comma(o.Lost), comma(o.Twice))
	if o.Unexpected > 0 {
		d.plain("  innocent    %9s   records are in quarantine that nothing is wrong with", comma(o.Unexpected))
	}
	d.plain("%d attempts, %d processes killed by a record, %.1f s.", o.Attempts, o.Deaths, o.Seconds)
	return nil
}

// cleanUp ends the processes and removes what the demo has made.
func (d *demo) cleanUp() error {
	if d.live {
		d.out.Keep()
	}
	d.endChildren()
	if d.proxy != nil {
		d.proxy.close()
	}
	if d.memory != nil {
		d.memory.remove()
	}
	var errs []error
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	if d.keep {
		place := d.adminDSN
		if d.schema != "" {
			place = "the schema " + d.schema
		}
		d.plain("Kept: %s; for instance: levada stream quarantine list %s --store %s", place, jobtext.ShortID(d.job.ID), shellWord(storeText(d.adminDSN)))
		return errors.Join(errs...)
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	if d.schema != "" {
		errs = append(errs, d.dropSchema())
	}
	return errors.Join(errs...)
}

// endChildren kills the processes, and waits for what watches them.
func (d *demo) endChildren() {
	for _, c := range d.children {
		c.wanted = false
		if c.cmd != nil && c.cmd.Process != nil && c.gone != nil {
			_ = c.stdin.Close()
			_ = c.cmd.Process.Kill()
		}
	}
	close(d.stopping)
	d.helpers.Wait()
}

// dropSchema has a deadline of its own: the demo's context may have ended.
func (d *demo) dropSchema() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, d.flags.store)
	if err == nil {
		_, err = conn.Exec(ctx, `drop schema `+d.schema+` cascade`)
		err = errors.Join(err, conn.Close(ctx))
	}
	if err != nil {
		return fmt.Errorf("the schema %s is left: %w", d.schema, err)
	}
	return nil
}
