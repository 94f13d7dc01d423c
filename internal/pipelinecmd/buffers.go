package pipelinecmd

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/standalone"
)

func newBuffersCommand(version string) *cobra.Command {
	f := buffersFlags{version: version}
	cmd := &cobra.Command{
		Use: "buffers", Aliases: []string{"buffer"},
		Short: "List, show, drain and drop the buffers between vertices",
		Long: `Each vertex but a source reads from a buffer, which is a stream at the broker for each of its partitions. These commands show all of them, also those of
pipelines and vertices that no manifest mentions any more. They open a data directory (--data) or a broker (--nats, --redis), and never disturb a process that reads a buffer.

A buffer is named NAMESPACE/PIPELINE/VERTEX/PARTITION. The namespace can be left out, and so can the partition, for all of them.`,
		Example: `  levada buffers list --data .levada/pipeline
  levada buffers drain --data .levada/pipeline
  levada buffers drop --data .levada/pipeline words/cat/3`,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.dataDir, "data", "", "data directory of levada run")
	f.broker.register(flags, "URL of the broker, if it is not in the data directory")

	cmd.AddCommand(f.listCommand(), f.showCommand(), f.drainCommand(), f.dropCommand())
	return cmd
}

func (f *buffersFlags) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List all buffers with what they hold", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.with(cmd, func(ctx context.Context, b *standalone.Buffers) error {
				all, err := b.List(ctx)
				if err != nil {
					return err
				}
				return f.print(cmd.OutOrStdout(), all, bufferTable)
			})
		},
	}
	commandline.Output(cmd.Flags(), &f.output, "table", "json")
	return cmd
}

func (f *buffersFlags) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show BUFFER...", Short: "Show buffers with all that is known of them", Args: someBuffers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd, func(ctx context.Context, b *standalone.Buffers) error {
				chosen, err := chooseBuffers(ctx, b, args)
				if err != nil {
					return err
				}
				return f.print(cmd.OutOrStdout(), chosen, bufferFields)
			})
		},
	}
	commandline.Output(cmd.Flags(), &f.output, "table", "json")
	return cmd
}

func (f *buffersFlags) dropCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "drop BUFFER...", Short: "Drop the messages of buffers for good", Args: someBuffers,
		Long: `Drop for good the messages that buffers hold, and say how many they were. A buffer that the stored topology does not have any more is removed.

A pipeline that runs is refused. Messages in a damaged block cannot be counted.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd, func(ctx context.Context, b *standalone.Buffers) error {
				chosen, err := chooseBuffers(ctx, b, args)
				if err != nil {
					return err
				}
				if !yes {
					if err := confirmDrop(cmd, chosen); err != nil {
						return err
					}
				}
				return dropBuffers(ctx, cmd.OutOrStdout(), b, chosen)
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// dropBuffers stops at the first buffer that fails. Each one before it is printed.
func dropBuffers(ctx context.Context, out io.Writer, b *standalone.Buffers, chosen []standalone.BufferView) error {
	for i := range chosen {
		n, err := b.Drop(ctx, chosen[i])
		if err != nil {
			return fmt.Errorf("%s: %w", chosen[i].Name(), err)
		}
		fmt.Fprintf(out, "%s: %d messages dropped\n", chosen[i].Name(), n)
	}
	return nil
}

type buffersFlags struct {
	version         string // of the program
	dataDir, output string
	broker          brokerFlags
}

func someBuffers(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return commandline.Usagef("name buffers as NAMESPACE/PIPELINE/VERTEX/PARTITION; levada buffers list shows them")
	}
	return nil
}

// with opens the buffers.
func (f *buffersFlags) with(cmd *cobra.Command, do func(context.Context, *standalone.Buffers) error) error {
	if f.dataDir == "" && !f.broker.given() {
		return commandline.Usagef("name the data directory with --data, which levada run prints when it starts, or the broker with --nats or --redis")
	}
	at, err := f.broker.broker(cmd.Flags())
	if err != nil {
		return err
	}
	b, err := standalone.OpenBuffers(cmd.Context(), f.dataDir, at)
	if err != nil {
		return err
	}
	defer b.Close()
	return do(cmd.Context(), b)
}

func chooseBuffers(ctx context.Context, b *standalone.Buffers, names []string) (chosen []standalone.BufferView, err error) {
	all, err := b.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		found := false
		for i := range all {
			if all[i].Matches(name) {
				found, chosen = true, append(chosen, all[i])
			}
		}
		if !found {
			return nil, fmt.Errorf("no buffer is called %s; levada buffers list shows them", commandline.Printable(name))
		}
	}
	return chosen, nil
}

// print writes buffers in the format of --output; table is how the format for people looks.
func (f *buffersFlags) print(out io.Writer, all []standalone.BufferView, table func(io.Writer, []standalone.BufferView)) error {
	if f.output == "json" {
		e := json.NewEncoder(out)
		for i := range all {
			if err := e.Encode(&all[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if len(all) == 0 {
		fmt.Fprintln(out, "no buffers")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	table(w, all)
	return w.Flush()
}

// bufferTable has a line for each buffer.
func bufferTable(w io.Writer, all []standalone.BufferView) {
	fmt.Fprintln(w, "BUFFER\tPENDING\tBLOCKS\tBYTES\tOLDEST\tIN TOPOLOGY\tOWNER")
	for i := range all {
		v := &all[i]
		c := describeBuffer(v)
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", commandline.Printable(v.Name()), v.Pending, v.Blocks, humanize.IBytes(uint64(v.Bytes)), c.oldest, c.recorded, c.owner)
	}
}

// bufferFields has a paragraph for each buffer, a line a field.
func bufferFields(w io.Writer, all []standalone.BufferView) {
	for i := range all {
		v := &all[i]
		if i > 0 {
			fmt.Fprintln(w)
		}
		c := describeBuffer(v)
		for _, field := range [][2]string{
			{"buffer", v.Name()},
			{"pending", fmt.Sprintf("%d messages in %d blocks of %s", v.Pending, v.Blocks, humanize.IBytes(uint64(v.Bytes)))},
			{"oldest", c.oldest}, {"in the stored topology", c.recorded}, {"owner", c.owner}, {"stream", v.Stream}, {"replicas", fmt.Sprint(v.Replicas)}, {"storage", v.Storage},
		} {
			fmt.Fprintf(w, "%s:\t%s\n", field[0], commandline.Printable(field[1]))
		}
		for _, s := range v.Shards {
			fmt.Fprintf(w, "shard %s:\t%d messages, owner %s\n", s.Shard, s.Pending, commandline.Printable(cmp.Or(s.Owner, "-")))
		}
	}
}

// bufferCells are fields of a buffer as text. oldest is the error, if the buffer could not be read.
type bufferCells struct{ oldest, recorded, owner string }

func describeBuffer(v *standalone.BufferView) bufferCells {
	c := bufferCells{oldest: "-", recorded: "yes", owner: "-"}
	if v.Oldest != nil {
		c.oldest = time.Since(*v.Oldest).Round(time.Second).String()
	}
	if !v.Recorded {
		c.recorded = "no"
	}
	switch {
	case v.Owner != "":
		c.owner = commandline.Printable(v.Owner)
	case len(v.Shards) > 0:
		owned := 0
		for _, s := range v.Shards {
			if s.Owner != "" {
				owned++
			}
		}
		c.owner = fmt.Sprintf("%d of %d shards have one", owned, len(v.Shards))
	}
	if v.Error != "" {
		c.oldest = commandline.Printable(commandline.FirstLine(v.Error))
	}
	return c
}

// confirmDrop asks a person. Where nobody can be asked, nothing is dropped.
func confirmDrop(cmd *cobra.Command, chosen []standalone.BufferView) error {
	total := 0
	for i := range chosen {
		total += chosen[i].Pending
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d messages\n", commandline.Printable(chosen[i].Name()), chosen[i].Pending)
	}
	if !commandline.IsTerminal(cmd.ErrOrStderr()) {
		return commandline.Usagef("nothing was dropped: confirm with --yes")
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Drop these %d messages for good? Type yes: ", total)
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was dropped")
	}
	return nil
}

// drainFlags are those of drain beside the ones of all commands of buffers.
type drainFlags struct {
	*buffersFlags
	secretDir string
	functions []string
	log       commandline.LogFlags
}

func (f *buffersFlags) drainCommand() *cobra.Command {
	d := drainFlags{buffersFlags: f}
	cmd := &cobra.Command{
		Use: "drain [PIPELINE...]", Short: "Run pipelines as they were last, without new input, until their buffers are empty",
		Long: `Run pipelines with the topology that is stored beside their buffers, until nothing is in flight. Sources read nothing new. Without arguments, drain every pipeline
of the data directory or broker. PIPELINE is NAME or NAMESPACE/NAME.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := d.config(cmd)
			if err != nil {
				return err
			}
			return drainPipelines(cmd, args, cfg)
		},
	}
	cmd.Flags().StringArrayVar(&d.functions, "function", nil, "VERTEX=COMMAND: the program in the place of a container, instead of the one of the last run")
	cmd.Flags().StringVar(&d.secretDir, "secret-dir", "", "directory of secrets, a file NAME/KEY each")
	d.log.Register(cmd.Flags())
	return cmd
}

// config is how the pipelines run while they are drained.
func (d *drainFlags) config(cmd *cobra.Command) (cfg standalone.Config, err error) {
	if d.dataDir == "" {
		return cfg, commandline.Usagef("name the data directory of levada run with --data: sinks keep files there")
	}
	logger, err := d.log.Logger(cmd.ErrOrStderr())
	if err != nil {
		return cfg, err
	}
	at, err := d.broker.broker(cmd.Flags())
	if err != nil {
		return cfg, err
	}
	commands := map[string]string{}
	for _, flag := range d.functions {
		name, command, ok := strings.Cut(flag, "=")
		if !ok || name == "" || strings.TrimSpace(command) == "" {
			return cfg, commandline.Usagef("--function %q: expected VERTEX=COMMAND", flag)
		}
		commands[name] = command
	}
	var jsonLog *slog.Logger
	if d.log.JSON() {
		jsonLog = logger
	}
	return standalone.Config{
		DataDir: d.dataDir, Broker: at, Commands: commands, SecretDir: d.secretDir, Stdout: cmd.OutOrStdout(), Logger: logger, Version: d.version,
		Output: printLine(cmd.ErrOrStderr(), jsonLog),
	}, nil
}

// drainPipelines drains the named pipelines, or all. A name that no pipeline has is an error, after the others are drained.
func drainPipelines(cmd *cobra.Command, names []string, cfg standalone.Config) error {
	met := map[string]bool{}
	n, err := standalone.Drain(cmd.Context(), cfg, func(namespace, name string) bool {
		for _, a := range names {
			if a == name || a == namespace+"/"+name {
				met[a] = true
				return true
			}
		}
		return len(names) == 0
	})
	if err != nil {
		return err
	}
	for _, a := range names {
		if !met[a] {
			return fmt.Errorf("no pipeline is called %s here; levada buffers list shows them", commandline.Printable(a))
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%d pipelines drained\n", n)
	return nil
}
