// Streams measures gRPC streams into a database, beside the two limits that nothing of the kind can pass: gRPC alone, with the same
// batches and nobody who keeps them, and the database alone, with the same rows loaded in bulk. All of it in one run, since machines
// are noisy; the first figure is CPU microseconds for a record, of producer, receiver and database together.
//
//	go run ./bench/streams [-records 1000000] [CASE...]
//
// A case is a file bench/cases/stream_*/stream.yaml. Postgres is started by itself (Debian's package postgresql-15).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/yaml"
)

// bench is a case and what it is measured against.
type benchCase struct {
	name string
	// Store is sqlite or postgres.
	Store string `json:"store"`
	// Size is that of a record's value, in bytes.
	Size int `json:"size"`
	// OfSlowerLimit is the goal for the rate, as a part of that of the slower limit.
	OfSlowerLimit float64 `json:"ofSlowerLimit"`
	// OwnMicroseconds is the goal for what fault tolerance costs beyond both limits, in microseconds of CPU for a record.
	OwnMicroseconds float64 `json:"ownMicroseconds"`
	// Slow makes the sink wait so many milliseconds for each commit; only memory is measured then.
	Slow int `json:"slow"`
	// MemoryMB is the goal for the receiver's memory.
	MemoryMB float64 `json:"memoryMB"`
}

func main() {
	records := flag.Int("records", 1_000_000, "records of a run")
	repeat := flag.Int("repeat", 1, "runs of each case")
	role := flag.String("role", "", "for the processes that this one starts")
	size := flag.Int("size", 1024, "for the processes that this one starts")
	target := flag.String("target", "", "for the processes that this one starts")
	database := flag.String("database", "", "for the processes that this one starts")
	slow := flag.Int("slow", 0, "for the processes that this one starts")
	profile := flag.String("profile", "", "directory for CPU profiles of producer and receiver")
	flag.Parse()
	var err error
	if *role != "" {
		err = play(part{role: *role, records: *records, size: *size, target: *target, database: *database, slow: *slow, profile: *profile})
	} else {
		err = run(flag.Args(), *records, *repeat, *profile)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/streams:", err)
		os.Exit(1)
	}
}

func run(names []string, records, repeat int, profile string) error {
	if len(names) == 0 {
		paths, _ := filepath.Glob("bench/cases/stream_*/stream.yaml")
		for _, p := range paths {
			names = append(names, filepath.Base(filepath.Dir(p)))
		}
	}
	if len(names) == 0 {
		return errors.New("there are no cases: run it from the root of the repository")
	}
	var cases []benchCase
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join("bench/cases", name, "stream.yaml"))
		if err != nil {
			return err
		}
		c := benchCase{name: name}
		if err := yaml.UnmarshalStrict(b, &c); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		cases = append(cases, c)
	}
	l := &lab{records: records, profile: profile}
	defer l.close()
	if err := l.open(); err != nil {
		return err
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "case\tpart\tCPU us/record\trecords/s\tof the slower limit\town CPU us/record\treceiver MB\tgoal")
	for range repeat {
		for _, c := range cases {
			if err := l.measure(c, func(r result) {
				fmt.Fprintf(out, "%s\t%s\t%.2f\t%.0f\t%s\t%s\t%.0f\t%s\n", c.name, r.part, r.micros(), r.rate(), r.ofLimit, r.own, float64(r.rss)/1e6, r.goal)
				fmt.Fprintf(os.Stderr, "%s %s: %.2f us, %.0f/s, receiver %.2f us, producer %.2f us, %.0f MB\n", c.name, r.part, r.micros(), r.rate(), r.receiver, r.producer, float64(r.rss)/1e6)
			}); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return out.Flush()
}

func goalOf(c benchCase) string {
	var goals []string
	if c.OfSlowerLimit > 0 {
		goals = append(goals, fmt.Sprintf("%.0f %%", c.OfSlowerLimit*100))
	}
	if c.OwnMicroseconds > 0 {
		goals = append(goals, fmt.Sprintf("own < %g us", c.OwnMicroseconds))
	}
	if c.MemoryMB > 0 {
		goals = append(goals, fmt.Sprintf("< %g MB", c.MemoryMB))
	}
	return strings.Join(goals, ", ")
}
