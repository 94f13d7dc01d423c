package pipelinecmd

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/catalogue"
)

func newBuiltinsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "builtins [NAME]", Short: "List the built-in functions, sources and sinks, and the sample images that they replace", Args: cobra.MaximumNArgs(1),
		Long: `List the built-in functions, sources and sinks. With a NAME, describe one, with the images of Numaflow's samples that it replaces.

Use one in a manifest with udf: {builtin: {name: NAME}}, or keep a sample's image: it is replaced by the builtin where no container engine runs.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			list := catalogue.List()
			if len(args) == 1 {
				if list = slices.DeleteFunc(list, func(d catalogue.Description) bool { return d.Name != args[0] }); len(list) == 0 {
					return commandline.Usagef("no builtin is called %q; levada builtins lists them", args[0])
				}
			}
			out := cmd.OutOrStdout()
			switch {
			case output == "json":
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				return e.Encode(list)
			case len(args) == 1:
				return describeBuiltin(out, list[0])
			}
			return tableOfBuiltins(out, list)
		},
	}
	commandline.Output(cmd.Flags(), &output, "table", "json")
	return cmd
}

// summaryWidth bounds the last column, so that a row fits into a terminal of 110 columns.
const summaryWidth = 72

func tableOfBuiltins(out io.Writer, list []catalogue.Description) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tKIND\tDESCRIPTION")
	for i := range list {
		d := &list[i]
		fmt.Fprintf(w, "%s\t%s\t%s\n", d.Name, d.Kind, summary(d.Does))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "\nlevada builtins NAME describes one in full, with its arguments and the images that it replaces.")
	return err
}

// summary is the first sentence, cut at a word where it is too long.
func summary(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if i := strings.Index(text, ". "); i >= 0 {
		text = text[:i]
	}
	text = strings.TrimSuffix(text, ".")
	if len(text) <= summaryWidth {
		return text
	}
	cut := text[:summaryWidth-3]
	if i := strings.LastIndexByte(cut, ' '); i > 0 {
		cut = cut[:i]
	}
	return cut + "..."
}

func describeBuiltin(out io.Writer, d catalogue.Description) error {
	fmt.Fprintf(out, "%s (%s)\n\n%s\n", d.Name, d.Kind, wrapped(d.Does, 100))
	if len(d.Takes) > 0 {
		fmt.Fprintf(out, "\narguments: %s (the first is required)\n", strings.Join(d.Takes, ", "))
	}
	if len(d.Images) > 0 {
		fmt.Fprintf(out, "\nreplaces the images:\n")
		for _, image := range d.Images {
			fmt.Fprintf(out, "  %s\n", image)
		}
	}
	return nil
}

func wrapped(text string, width int) string {
	var b strings.Builder
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
		case column+1+len(word) > width:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}
