package pipelinecmd

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/standalone"
)

type scaleFlags struct {
	dataDir    string
	broker     brokerFlags
	wait, skip bool
	timeout    time.Duration
}

func newScaleCommand() *cobra.Command {
	f := scaleFlags{}
	cmd := &cobra.Command{
		Use:   "scale PIPELINE/VERTEX N",
		Short: "Change how many processes run a vertex, while messages are in flight",
		Long: `Change the number of processes of a vertex that levada run --processes has started. Name the run by its data directory (--data), or the broker that it uses (--nats,
--redis). No message is lost or processed twice: a process that is not wanted any more finishes what it has begun, and its partitions move to the others.

The number is kept with the state of the pipeline: the same command line of levada run starts as many the next time. Another number in --processes replaces it.

The command waits until as many processes run as are wanted (--no-wait: it does not).`,
		Example: `  levada scale words/cat 4 --data .levada/pipeline
  levada scale default/words/cat 2 --nats nats://127.0.0.1:4222 --no-wait`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return commandline.Usagef("expected PIPELINE/VERTEX and a number of processes, for instance levada scale words/cat 4 --data .levada/words")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0], args[1]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dataDir, "data", "", "data directory of the levada run on this machine")
	f.broker.register(flags, "URL of the broker of the run")
	flags.BoolVar(&f.wait, "wait", true, "wait until as many processes run as are wanted")
	flags.BoolVar(&f.skip, "no-wait", false, "do not wait")
	flags.DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long to wait at most")
	commandline.AtLeast(flags, "timeout", 100*time.Millisecond)
	return cmd
}

func (f *scaleFlags) run(cmd *cobra.Command, name, number string) error {
	at := strings.LastIndexByte(name, '/')
	if at <= 0 || at == len(name)-1 {
		return commandline.Usagef("%q: expected PIPELINE/VERTEX or NAMESPACE/PIPELINE/VERTEX", name)
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > standalone.MaxProcesses {
		return commandline.Usagef("%q: expected a number of processes from 1 to %d", number, standalone.MaxProcesses)
	}
	if f.dataDir == "" && !f.broker.given() {
		return commandline.Usagef("name the data directory of the run with --data, which levada run prints when it starts, or its broker with --nats or --redis")
	}
	broker, err := f.broker.broker(cmd.Flags())
	if err != nil {
		return err
	}
	s, err := standalone.OpenScaler(cmd.Context(), f.dataDir, broker)
	if err != nil {
		return err
	}
	defer s.Close()
	return f.scale(cmd.Context(), cmd.OutOrStdout(), s, name[:at], name[at+1:], n)
}

// scalePoll is how often the processes are looked at.
const scalePoll = 100 * time.Millisecond

func (f *scaleFlags) scale(ctx context.Context, out io.Writer, s *standalone.Scaler, pipeline, vertex string, n int) error {
	was, err := s.Set(ctx, pipeline, vertex, n)
	if err != nil {
		return err
	}
	if !f.wait || f.skip {
		fmt.Fprintf(out, "%s/%s: %s wanted, %d before\n", pipeline, vertex, processesText(n), was)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	begun, tick := time.Now(), time.NewTicker(scalePoll)
	defer tick.Stop()
	var last standalone.Processes
	for {
		p, err := s.Get(ctx, pipeline, vertex)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s wanted, and it is not known how many run: %w", processesText(n), err)
		}
		if err == nil {
			last = p
		}
		if err == nil && p.Wanted == n && p.Settled() {
			fmt.Fprintf(out, "%s/%s: %s, %d before, after %v\n", pipeline, vertex, processesText(n), was, time.Since(begun).Round(10*time.Millisecond))
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s of %s/%s wanted, and after %v %d run and %d are ending: the run goes on with it, and its log says what keeps them", processesText(n), pipeline, vertex,
				time.Since(begun).Round(time.Second), last.Running, last.Ending)
		}
	}
}

func processesText(n int) string {
	if n == 1 {
		return "1 process"
	}
	return fmt.Sprintf("%d processes", n)
}
