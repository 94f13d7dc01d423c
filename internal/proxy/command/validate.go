package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/proxy/config"
)

func newValidate(o Options) *cobra.Command {
	var (
		format, excerpt string
		files           bool
	)
	cmd := &cobra.Command{
		Use:   "validate FILE|-...",
		Short: "Check configurations of the proxy, and report every problem with its place",
		Long: `Check configurations of the proxy as strictly as the proxy itself does.

The exit code is 0 when there is no problem, 1 when there is one, and 2 when the command line is wrong.`,
		Example: examples(o.Name, "validate proxy.yaml", "validate --files -o json proxy.yaml"),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return commandline.Usagef("%s needs a file, or - for the standard input", cmd.Name())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var problems config.Problems
			for _, name := range args {
				problems = append(problems, configProblems(cmd.InOrStdin(), cmd.ErrOrStderr(), name, files, o.Kubernetes != nil)...)
			}
			out := cmd.OutOrStdout()
			err := writeConfigProblems(out, format, problems, len(args), excerpt == "always" || excerpt == "auto" && commandline.IsTerminal(out))
			if err == nil && len(problems) > 0 {
				err = commandline.Problems()
			}
			return err
		},
	}
	commandline.Output(cmd.Flags(), &format, "text", "json")
	commandline.Enum(cmd.Flags(), &excerpt, "excerpt", "", "whether to print the line of each problem; auto prints it on terminals", "auto", "always", "never")
	cmd.Flags().BoolVar(&files, "files", false, "also look at the certificates and keys that are named, and warn of those that are not valid now; relative paths begin here")
	return cmd
}

// configProblems are those of one file; - is the standard input. What a proxy only warns of is written to warnings.
func configProblems(in io.Reader, warnings io.Writer, name string, files, kubernetes bool) config.Problems {
	var c *config.Config
	var err error
	if name == "-" {
		name = "standard input"
		c, err = readInput(in)
	} else {
		c, err = config.Load(name)
	}
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		return problems
	case err != nil:
		return config.Problems{{File: name, Message: err.Error()}}
	}
	if !kubernetes {
		problems = c.WithoutKubernetes()
	}
	if files {
		problems = append(problems, c.CheckFiles()...)
		problems.Sort()
		for _, p := range c.CheckTimes(time.Now()) {
			_, _ = fmt.Fprintln(warnings, "warning: "+printable(p.Error()))
		}
	}
	return problems
}

func writeConfigProblems(w io.Writer, format string, problems config.Problems, files int, excerpts bool) error {
	if format == "json" {
		return encodeConfigProblems(w, problems, files)
	}
	var b strings.Builder
	for _, p := range problems {
		writeConfigProblem(&b, p, excerpts)
	}
	fmt.Fprintf(&b, "%s: %s\n", plural(files, "file"), plural(len(problems), "error"))
	_, err := io.WriteString(w, b.String())
	return err
}

// configProblemJSON is a problem for machines. The names are those of levada validate -o json.
type configProblemJSON struct {
	File       string `json:"file"`
	Line       int    `json:"line,omitempty"`   // from 1; 0 where the place is not known
	Column     int    `json:"column,omitempty"` // from 1
	Path       string `json:"path,omitempty"`
	Message    string `json:"message"`
	Expected   string `json:"expected,omitempty"`
	DidYouMean string `json:"didYouMean,omitempty"`
	Hint       string `json:"hint,omitempty"`
}

func encodeConfigProblems(w io.Writer, problems config.Problems, files int) error {
	list := make([]configProblemJSON, len(problems)) // not nil, so that none is [] and not null
	for i, p := range problems {
		list[i] = configProblemJSON{p.File, p.Line, p.Column, p.Path, p.Message, p.Expected, p.DidYouMean, p.Hint}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Files    int                 `json:"files"`
		Errors   int                 `json:"errors"`
		Problems []configProblemJSON `json:"problems"`
	}{files, len(list), list})
}

func writeConfigProblem(b *strings.Builder, p config.Problem, excerpt bool) {
	place := config.Problem{File: p.File, Line: p.Line, Column: p.Column, Path: p.Path, Message: p.Message}
	b.WriteString(printable(place.Error()) + "\n")
	if excerpt {
		for line := range strings.Lines(p.Excerpt()) {
			b.WriteString(printable(strings.TrimSuffix(line, "\n")) + "\n")
		}
	}
	for _, more := range []struct{ name, text string }{{"expected", p.Expected}, {"did you mean", p.DidYouMean}, {"hint", p.Hint}} {
		if more.text != "" {
			fmt.Fprintf(b, "    %s: %s\n", more.name, printable(more.text))
		}
	}
}
