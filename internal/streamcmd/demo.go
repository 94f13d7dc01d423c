package streamcmd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream"
)

// demoFaults are what the demo can do, in the order in which it names them.
var demoFaults = []string{"panic", "cut", "restart", "sigterm", "oom", "broker", "database"}

type demoFlags struct {
	store, notifier string
	users, rate     int
	seed            uint64
	memory          int64
	timeout         time.Duration
	keep            bool
	out             outputFlag
}

func newDemoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use: "demo [panic|cut|restart|sigterm|oom|broker|database|all]...", Short: "Two services, a table of users, and everything that can go wrong",
		Long: `A service has a table of users, and another one copies it over a gRPC stream, exactly once. Both are real processes. At random points of the
stream something breaks; at the end the copy is compared with the original, record for record.

  panic     a user whose record panics its handler
  cut       the connection between the services is reset
  restart   the producing service is killed and started again
  sigterm   a worker gets SIGTERM, as in a rolling update
  oom       a user whose record makes its handler take all memory, so that the process is killed, again and again
  broker    the broker that wakes workers is killed
  database  the database of the copy: SQLite is locked by another process for a while, Postgres ends all connections

Without a name: all of them. Nothing is left when it ends, unless --keep is given.`,
		Example: `  levada stream demo
  levada stream demo oom cut --users 50000
  levada stream demo --store postgres://localhost/test`,
		RunE: func(cmd *cobra.Command, args []string) error { return streamDemo(cmd, args, &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.store, "store", "", "postgres:// URL of the copy, with two workers, in a schema of the demo's own (default: a SQLite file, with one worker)")
	flags.StringVar(&f.notifier, "notifier", "", "amqp:// or nats:// URL of a broker of yours (default: one of the demo's own, where there is something to break)")
	flags.IntVar(&f.users, "users", 200000, "users in the table")
	flags.IntVar(&f.rate, "rate", 0, "users per second that the producer sends at most (default: all of them in 12 seconds)")
	flags.Uint64Var(&f.seed, "seed", 0, "what chance begins with; 0: another one each time")
	flags.Int64Var(&f.memory, "memory", 256, "MiB that a worker may take")
	flags.DurationVar(&f.timeout, "timeout", 3*time.Minute, "give up after this long")
	flags.BoolVar(&f.keep, "keep", false, "keep the files, or the schema, and say where they are")
	f.out.register(flags)
	return cmd
}

func streamDemo(cmd *cobra.Command, args []string, f *demoFlags) error {
	usage := func(text string, args ...any) error {
		return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf(text, args...)}
	}
	chosen := map[string]bool{}
	for _, name := range args {
		switch {
		case name == "all":
			for _, fault := range demoFaults {
				chosen[fault] = true
			}
		case slices.Contains(demoFaults, name):
			chosen[name] = true
		default:
			return usage("demo: unknown fault %q, expected one of %s, all", name, strings.Join(demoFaults, ", "))
		}
	}
	if len(args) == 0 {
		for _, fault := range demoFaults {
			chosen[fault] = true
		}
	}
	switch {
	case f.users < 1000 || f.users > 100_000_000:
		return usage("--users is %d: expected 1000 to 100000000", f.users)
	case f.rate < 0:
		return usage("--rate is %d, and must not be negative", f.rate)
	case f.memory < 128 || f.memory > 1024:
		return usage("--memory is %d: expected 128 to 1024 MiB", f.memory)
	case f.store != "" && !strings.HasPrefix(f.store, "postgres://") && !strings.HasPrefix(f.store, "postgresql://"):
		return usage("--store: expected a postgres:// URL; without it the demo makes a SQLite file of its own")
	}
	if f.seed == 0 {
		f.seed = rand.Uint64N(1_000_000) + 1
	}
	if f.rate == 0 {
		f.rate = max(f.users/12, 100)
	}
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), f.timeout, fmt.Errorf("the demo did not come to its end within %v (--timeout)", f.timeout))
	defer cancel()
	d := &demo{
		demoFlags: f, ctx: ctx, chance: rand.New(rand.NewPCG(f.seed, 0)), begun: time.Now(),
		out: &commandline.Screen{Out: cmd.OutOrStdout()}, live: commandline.IsTerminal(cmd.OutOrStdout()) && !f.out.json(),
		happened: make(chan func(), 1000), stopping: make(chan struct{}),
	}
	err := d.run(chosen)
	if e := d.cleanUp(); err == nil {
		err = e
	}
	return err
}

// demo is one run. All its state belongs to the goroutine of run; others hand it what happened.
type demo struct {
	*demoFlags
	ctx      context.Context
	chance   *rand.Rand
	begun    time.Time
	out      *commandline.Screen
	live     bool
	happened chan func()
	stopping chan struct{} // closed when nothing reads the events any more
	helpers  sync.WaitGroup

	dir, schema         string
	adminDSN, workerDSN string
	store               *database
	users               *demoUsers
	memory              *memoryLimit
	proxy               *demoProxy
	producer, broker    *demoChild
	workers             []*demoChild
	children            []*demoChild

	plan    []demoFault
	job     stream.Status
	owner   *demoChild // who has the job
	meter   meter
	later   []demoTask
	aside   map[uint64]bool // quarantined records that were printed
	deaths  int             // of workers, by the record that takes all memory
	broken  bool            // the disconnect was printed, the new stream not yet
	settled bool
}

// demoFault breaks something when the job has come to a record. The breakage of panic and oom is in the record itself.
type demoFault struct {
	name string
	at   uint64
	do   func()
}

type demoTask struct {
	when time.Time
	do   func()
}

// demoChild is a process of the demo.
type demoChild struct {
	name   string
	pod    string // uid
	args   []string
	cmd    *exec.Cmd
	stdin  io.Closer
	line   func(string) // its output
	wanted bool         // it is to run
	killed string       // why the demo has ended it
	gone   chan struct{}
	died   bool
	taken  string // the claim is printed with its next event, when the crash state is known
}

func (d *demo) say(text string, args ...any) {
	text = fmt.Sprintf(text, args...)
	if d.demoFlags.out.json() {
		_ = encode(d.out, false, map[string]any{"seconds": time.Since(d.begun).Seconds(), "text": text, "records": d.job.Progress.Records})
		return
	}
	fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.begun).Seconds(), text)
}

// plain is text without a time.
func (d *demo) plain(text string, args ...any) {
	if !d.demoFlags.out.json() {
		fmt.Fprintf(d.out, text+"\n", args...)
	}
}

func comma(n uint64) string { return humanize.Comma(int64(n)) }

func (d *demo) run(chosen map[string]bool) error {
	if err := d.prepare(chosen); err != nil {
		return err
	}
	if err := d.startAll(chosen); err != nil {
		return err
	}
	status, err := d.store.Submit(d.ctx, stream.Job{Stream: demoStream, DedupeKey: "demo"})
	if err != nil {
		return err
	}
	d.job = status
	d.say("a job is submitted: copy all users, exactly once")
	if d.notifier != "" {
		notification := notifierFlag{d.notifier}
		if err := notification.send(d.ctx, d.store, io.Discard, status.Job); err != nil {
			return err
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !d.settled {
		select {
		case <-d.ctx.Done():
			return context.Cause(d.ctx)
		case do := <-d.happened:
			do()
		case now := <-tick.C:
			if err := d.look(now); err != nil {
				return err
			}
		}
	}
	return d.verify()
}

// prepare makes the places and the plan.
func (d *demo) prepare(chosen map[string]bool) (err error) {
	if d.dir, err = os.MkdirTemp("", "levada-demo-"); err != nil {
		return err
	}
	d.aside = map[uint64]bool{}
	d.adminDSN = filepath.Join(d.dir, "users.db")
	d.workerDSN = d.adminDSN
	if d.demoFlags.store != "" {
		if err := d.makeSchema(); err != nil {
			return err
		}
	}
	flag := storeFlag{name: d.adminDSN}
	if d.store, err = flag.open(d.ctx, true); err != nil {
		return err
	}
	d.memory = &memoryLimit{bytes: d.demoFlags.memory << 20}
	if chosen["oom"] {
		d.memory = newMemoryLimit(d.memory.bytes)
		if d.memory.group == "" && residentMemory(d.ctx, os.Getpid()) == 0 {
			d.plain("oom is left out: on this system neither a control group nor a process's memory limit is available")
			delete(chosen, "oom")
		}
	}
	// A slot of the stream for each fault, in random order; in the middle of it, so that they do not meet.
	var names []string
	for _, name := range demoFaults {
		if chosen[name] {
			names = append(names, name)
		}
	}
	d.chance.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	d.users = &demoUsers{count: d.demoFlags.users, notes: map[uint64]string{}}
	do := map[string]func(){"cut": d.cut, "restart": d.restartProducer, "sigterm": d.stopWorker, "broker": d.killBroker, "database": d.breakDatabase}
	for i, name := range names {
		slot := uint64(d.users.count / (len(names) + 1))
		at := slot/2 + uint64(i)*slot + slot/4 + d.chance.Uint64N(slot/2) + 1
		d.plan = append(d.plan, demoFault{name, at, do[name]})
		switch name {
		case "panic":
			d.users.notes[at] = notePanic
		case "oom":
			d.users.notes[at] = noteMemory
		}
	}
	return nil
}

// makeSchema makes a schema in the user's database for the demo alone.
func (d *demo) makeSchema() error {
	d.schema = fmt.Sprintf("levada_demo_%d_%d", os.Getpid(), d.seed)
	conn, err := pgx.Connect(d.ctx, d.demoFlags.store)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(d.ctx))
	if _, err := conn.Exec(d.ctx, `create schema `+d.schema); err != nil {
		d.schema = ""
		return fmt.Errorf("make a schema for the demo: %w", err)
	}
	with := func(role string) (string, error) {
		u, err := url.Parse(d.demoFlags.store)
		if err != nil {
			return "", err
		}
		q := u.Query()
		q.Set("search_path", d.schema)
		q.Set("application_name", d.schema+"_"+role)
		u.RawQuery = q.Encode()
		return u.String(), nil
	}
	if d.adminDSN, err = with("demo"); err != nil {
		return err
	}
	d.workerDSN, err = with("worker")
	return err
}

func (d *demo) startAll(chosen map[string]bool) error {
	d.plain("Two services: one has a table of %s users, the other copies it over a gRPC stream, exactly once. (seed %d)", comma(uint64(d.users.count)), d.seed)
	var bad []string
	for id, note := range d.users.notes {
		bad = append(bad, fmt.Sprintf("%d=%s", id, note))
	}
	listen, err := freeAddress()
	if err != nil {
		return err
	}
	ready := make(chan string, 1)
	d.producer = d.child("producer", "demo-producer", "--listen", listen, "--users", fmt.Sprint(d.users.count), "--rate", fmt.Sprint(d.rate), "--bad", strings.Join(bad, ","))
	d.producer.line = func(string) {
		select {
		case ready <- "":
		default:
		}
	}
	if err := d.start(d.producer); err != nil {
		return err
	}
	if err := d.await(ready, d.producer); err != nil {
		return err
	}
	if d.proxy, err = newDemoProxy(listen); err != nil {
		return err
	}
	d.plain("  producer  pid %d, on %s, behind a small TCP proxy that can cut connections", d.producer.cmd.Process.Pid, listen)
	if chosen["broker"] && d.notifier == "" {
		at, err := freeAddress()
		if err != nil {
			return err
		}
		d.broker = d.child("broker", "demo-broker", "--listen", at, "--data", filepath.Join(d.dir, "broker"))
		d.broker.line = func(string) {
			select {
			case ready <- "":
			default:
			}
		}
		if err := d.start(d.broker); err != nil {
			return err
		}
		if err := d.await(ready, d.broker); err != nil {
			return err
		}
		d.notifier = "nats://" + at
		d.plain("  broker    pid %d, NATS JetStream on %s: it only wakes workers", d.broker.cmd.Process.Pid, at)
	}
	workers := 1
	if d.schema != "" {
		workers = 2
	}
	for i := range workers {
		notifier := d.notifier
		if notifier == "" {
			notifier = "auto"
		}
		w := d.child(fmt.Sprintf("worker %d", i+1), "demo-worker", "--store", d.workerDSN, "--target", d.proxy.address(), "--notifier", notifier)
		w.pod = stream.NewID()
		w.line = func(line string) { d.workerSaid(w, line) }
		d.workers = append(d.workers, w)
		if err := d.start(w); err != nil {
			return err
		}
		place := "table users of the schema " + d.schema
		if d.schema == "" {
			place = "table users of " + d.adminDSN
		}
		d.plain("  %s  pid %d, copies into %s", w.name, w.cmd.Process.Pid, place)
	}
	if chosen["oom"] {
		d.plain("  memory    %s", d.memory.how())
	}
	return nil
}

// await waits until a child says that it is there.
func (d *demo) await(ready <-chan string, c *demoChild) error {
	for {
		select {
		case <-ready:
			return nil
		case do := <-d.happened:
			do()
		case <-c.gone:
			return fmt.Errorf("the %s did not start", c.name)
		case <-d.ctx.Done():
			return context.Cause(d.ctx)
		}
	}
}

// freeAddress finds a port that a process can have again and again.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (d *demo) workerSaid(w *demoChild, line string) {
	var e demoEvent
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		return
	}
	if w.taken != "" && e.Kind != stream.EventClaimed {
		if status, err := d.store.Get(d.ctx, d.job.ID); err == nil && status.CrashState.BatchLimit > 0 && d.deaths > 0 {
			w.taken += fmt.Sprintf("; it is careful: %s at once", records(status.CrashState.BatchLimit))
		}
		d.say("%s", w.taken)
		w.taken, d.broken = "", false
	}
	switch e.Kind {
	case stream.EventClaimed:
		w.died = e.Died
	case stream.EventFenced:
		d.owner = w
		switch {
		case e.To == 0:
			w.taken = w.name + " takes the job and begins"
		case w.died:
			w.taken = fmt.Sprintf("%s takes the job, whose owner had died, and goes on after record %s", w.name, comma(e.To))
		default:
			w.taken = fmt.Sprintf("%s takes the job and goes on after record %s", w.name, comma(e.To))
		}
	case stream.EventDisconnected:
		if !d.broken {
			d.say("%s: the stream broke: %s", w.name, shorten(e.Error, 110))
		}
		d.broken = true
	case stream.EventOpened:
		if d.broken {
			d.say("%s has a new stream, from record %s on: what was committed is not sent again", w.name, comma(e.From))
		}
		d.broken = false
	case stream.EventRetry:
		if !d.broken {
			d.say("%s tries again: %s", w.name, shorten(e.Error, 110))
		}
	case stream.EventCommitted:
		d.tellQuarantine()
	case stream.EventLost:
		d.say("%s has lost the job: %s", w.name, shorten(e.Error, 110))
	case stream.EventReleased:
		switch e.State {
		case stream.Ready:
			d.say("%s gives the job back, after record %s", w.name, comma(d.job.Progress.Records))
		case stream.Completed:
			d.say("%s: the job is complete: number and digest are those that the producer names", w.name)
		}
	}
}

func records(n int) string {
	if n == 1 {
		return "one record"
	}
	return fmt.Sprintf("%d records", n)
}

// tellQuarantine prints records that were quarantined.
func (d *demo) tellQuarantine() {
	rows, err := d.store.offsets().Quarantined(d.ctx, d.job.ID, 1000)
	if err != nil {
		return
	}
	for _, q := range rows {
		if d.aside[q.Seq] {
			continue
		}
		d.aside[q.Seq] = true
		switch q.Class {
		case stream.ClassCrash:
			d.say("record %s killed its process %d times alone, %d times in all: it is in quarantine with its payload, and the stream goes on", comma(q.Seq), q.Attempts, d.deaths)
		case stream.ClassPanic:
			d.say("record %s panicked its handler (%s): it is in quarantine with its payload, and the stream goes on", comma(q.Seq), shorten(q.Error, 80))
		default:
			d.say("record %s is in quarantine: %s", comma(q.Seq), shorten(q.Error, 80))
		}
	}
}

// look asks the store how far the job has come, and breaks what is due.
func (d *demo) look(now time.Time) error {
	for i := 0; i < len(d.later); i++ {
		if task := d.later[i]; !now.Before(task.when) {
			d.later = slices.Delete(d.later, i, i+1)
			i--
			task.do()
		}
	}
	status, err := d.store.Get(d.ctx, d.job.ID)
	if err != nil {
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		return nil // the database may be what is broken
	}
	d.job = status
	if d.live {
		d.out.Draw(d.progress(now))
	}
	for len(d.plan) > 0 && d.plan[0].at <= status.Progress.Records+1 {
		fault := d.plan[0]
		d.plan = d.plan[1:]
		if fault.do != nil && !status.State.Final() {
			fault.do()
		}
	}
	switch status.State {
	case stream.Completed:
		// The worker's events about it are not printed yet.
		d.in(100*time.Millisecond, func() { d.settled = true })
	case stream.Failed, stream.Cancelled, stream.Paused:
		return fmt.Errorf("the job is %s: %s: %s", status.State, status.Reason, status.LastError)
	}
	return nil
}

func (d *demo) progress(now time.Time) string {
	rate := d.meter.update(now, d.job.Progress.Records)
	const width = 24
	done := int(d.job.Progress.Records * width / uint64(d.users.count))
	return fmt.Sprintf("         [%s%s] %s of %s users, %s/s, attempt %d\n", strings.Repeat("=", done), strings.Repeat(" ", width-done),
		comma(d.job.Progress.Records), comma(uint64(d.users.count)), comma(uint64(rate)), d.job.Attempts)
}

// storeText is a store's name without its password.
func storeText(dsn string) string {
	if u, err := url.Parse(dsn); err == nil && u.User != nil {
		return u.Redacted()
	}
	return dsn
}

func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
