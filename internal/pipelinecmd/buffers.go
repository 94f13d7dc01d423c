package pipelinecmd

import (
	"bufio"
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
pipelines and vertices that no manifest mentions any more. They open a data directory (--data) or a broker (--nats), and never disturb a process that reads a buffer.

A buffer is named NAMESPACE/PIPELINE/VERTEX/PARTITION. The namespace can be left out, and so can the partition, for all of them.`,
		Example: `  levada buffers list --data .levada/pipeline
  levada buffers drain --data .levada/pipeline
  levada buffers drop --data .levada/pipeline words/cat/3`,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.dataDir, "data", "", "data directory of levada run")
	f.broker.register(flags, "URL of the broker, if it is not in the data directory")

	list := &cobra.Command{
		Use: "list", Short: "List all buffers with what they hold", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.with(cmd, func(ctx context.Context, b *standalone.Buffers) error {
				all, err := b.List(ctx)
				if err != nil {
					return err
				}
				return printBuffers(cmd.OutOrStdout(), all, f.output, false)
			})
		},
	}
	show := &cobra.Command{
		Use: "show BUFFER...", Short: "Show buffers with all that is known of them", Args: someBuffers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd, func(ctx context.Context, b *standalone.Buffers) error {
				chosen, err := chooseBuffers(ctx, b, args)
				if err != nil {
					return err
				}
				return printBuffers(cmd.OutOrStdout(), chosen, f.output, true)
			})
		},
	}
	for _, c := range []*cobra.Command{list, show} {
		commandline.Output(c.Flags(), &f.output, "table", "json")
	}
	var yes bool
	drop := &cobra.Command{
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
				for i := range chosen {
					n, err := b.Drop(ctx, chosen[i])
					if err != nil {
						return fmt.Errorf("%s: %w", chosen[i].Name(), err)
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %d messages dropped\n", chosen[i].Name(), n)
				}
				return nil
			})
		},
	}
	drop.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.AddCommand(list, show, f.drainCommand(), drop)
	return cmd
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
	if f.dataDir == "" && f.broker.url == "" {
		return commandline.Usagef("name the data directory with --data, which levada run prints when it starts, or the broker with --nats")
	}
	options, err := f.broker.options(cmd.Flags())
	if err != nil {
		return err
	}
	b, err := standalone.OpenBuffers(cmd.Context(), f.dataDir, f.broker.url, options...)
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

func printBuffers(out io.Writer, all []standalone.BufferView, format string, whole bool) error {
	if format == "json" {
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
	if !whole {
		fmt.Fprintln(w, "BUFFER\tPENDING\tBLOCKS\tBYTES\tOLDEST\tIN TOPOLOGY\tOWNER")
	}
	for i := range all {
		v := &all[i]
		oldest, recorded, owner := "-", "yes", "-"
		if v.Oldest != nil {
			oldest = time.Since(*v.Oldest).Round(time.Second).String()
		}
		if !v.Recorded {
			recorded = "no"
		}
		if v.Owner != "" {
			owner = commandline.Printable(v.Owner)
		}
		if v.Error != "" {
			oldest = commandline.Printable(commandline.FirstLine(v.Error))
		}
		if !whole {
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", commandline.Printable(v.Name()), v.Pending, v.Blocks, humanize.IBytes(uint64(v.Bytes)), oldest, recorded, owner)
			continue
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		for _, field := range [][2]string{
			{"buffer", v.Name()},
			{"pending", fmt.Sprintf("%d messages in %d blocks of %s", v.Pending, v.Blocks, humanize.IBytes(uint64(v.Bytes)))},
			{"oldest", oldest}, {"in the stored topology", recorded}, {"owner", owner}, {"stream", v.Stream}, {"replicas", fmt.Sprint(v.Replicas)}, {"storage", v.Storage},
		} {
			fmt.Fprintf(w, "%s:\t%s\n", field[0], commandline.Printable(field[1]))
		}
	}
	return w.Flush()
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

func (f *buffersFlags) drainCommand() *cobra.Command {
	var secretDir string
	var functions []string
	var log commandline.LogFlags
	cmd := &cobra.Command{
		Use: "drain [PIPELINE...]", Short: "Run pipelines as they were last, without new input, until their buffers are empty",
		Long: `Run pipelines with the topology that is stored beside their buffers, until nothing is in flight. Sources read nothing new. Without arguments, drain every pipeline
of the data directory or broker. PIPELINE is NAME or NAMESPACE/NAME.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.dataDir == "" {
				return commandline.Usagef("name the data directory of levada run with --data: sinks keep files there")
			}
			logger, err := log.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			options, err := f.broker.options(cmd.Flags())
			if err != nil {
				return err
			}
			commands := map[string]string{}
			for _, flag := range functions {
				name, command, ok := strings.Cut(flag, "=")
				if !ok || name == "" || strings.TrimSpace(command) == "" {
					return commandline.Usagef("--function %q: expected VERTEX=COMMAND", flag)
				}
				commands[name] = command
			}
			met := map[string]bool{}
			cfg := standalone.Config{
				DataDir: f.dataDir, NATS: f.broker.url, NATSOptions: options, Commands: commands, SecretDir: secretDir, Stdout: cmd.OutOrStdout(), Logger: logger, Version: f.version,
			}
			var jsonLog *slog.Logger
			if log.JSON() {
				jsonLog = logger
			}
			cfg.Output = printLine(cmd.ErrOrStderr(), jsonLog)
			n, err := standalone.Drain(cmd.Context(), cfg, func(namespace, name string) bool {
				for _, a := range args {
					if a == name || a == namespace+"/"+name {
						met[a] = true
						return true
					}
				}
				return len(args) == 0
			})
			if err != nil {
				return err
			}
			for _, a := range args {
				if !met[a] {
					return fmt.Errorf("no pipeline is called %s here; levada buffers list shows them", commandline.Printable(a))
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d pipelines drained\n", n)
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&functions, "function", nil, "VERTEX=COMMAND: the program in the place of a container, instead of the one of the last run")
	cmd.Flags().StringVar(&secretDir, "secret-dir", "", "directory of secrets, a file NAME/KEY each")
	log.Register(cmd.Flags())
	return cmd
}
