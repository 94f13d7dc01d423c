package pipelinecmd

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/manifest"
)

func newExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "explain [CODE...]",
		Short:   "Explain a problem code; without a code, list all codes",
		Example: "  levada explain LV1203",
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var codes []string
			for _, e := range manifest.Catalogue() {
				codes = append(codes, string(e.Code)+"\t"+e.Title)
			}
			return codes, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				for _, e := range manifest.Catalogue() {
					if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %-7s  %s\n", e.Code, e.Severity, e.Title); err != nil {
						return err
					}
				}
				return nil
			}
			for i, arg := range args {
				e, ok := manifest.Explain(manifest.Code(strings.ToUpper(arg)))
				if !ok {
					err := fmt.Errorf("there is no code %q", arg)
					if did := manifest.SuggestCode(arg); did != "" {
						err = fmt.Errorf("%w; did you mean %s?", err, did)
					}
					return commandline.UsageError(err)
				}
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				if err := writeExplanation(cmd.OutOrStdout(), e); err != nil {
					return err
				}
			}
			return nil
		},
	}
	return cmd
}

func writeExplanation(w io.Writer, e manifest.Explanation) error {
	indent := func(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }
	_, err := fmt.Fprintf(w, "%s (%s): %s\n\n%s\n\nWrong:\n%s\n\nRight:\n%s\n",
		e.Code, e.Severity, e.Title, wrap(e.Text, 90), indent(e.Wrong), indent(e.Right))
	return err
}

// wrap breaks a text into lines of at most width characters, where words allow.
func wrap(text string, width int) string {
	var b strings.Builder
	length := 0
	for _, word := range strings.Fields(text) {
		n := len([]rune(word))
		switch {
		case length == 0:
		case length+1+n > width:
			b.WriteByte('\n')
			length = 0
		default:
			b.WriteByte(' ')
			length++
		}
		b.WriteString(word)
		length += n
	}
	return b.String()
}
