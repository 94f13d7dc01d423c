package pipelinecmd

import (
	_ "time/tzdata" // time zones of manifests are checked on machines without any

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/manifest"
)

// validateFlags say what is checked and how it is written.
type validateFlags struct {
	format, excerpt string
	strict          bool
	runnable        bool

	// Of the run whose start is checked; with runnable only.
	functions []string
	secretDir string
}

func newValidateCommand() *cobra.Command {
	f := validateFlags{}
	cmd := &cobra.Command{
		Use:   "validate FILE|DIR|-...",
		Short: "Check manifests, offline, and report every problem with its place",
		Long: `Check manifests as strictly as the Kubernetes API server and the operator would, without either.

Each problem has a position, a code and, where possible, a suggestion; "levada explain CODE" explains it.
The exit code is 0 when there is no error, 1 when there is one, and 2 when the command line is wrong.`,
		Example: `  levada validate pipeline.yaml
  levada validate --strict -o sarif deploy/ > levada.sarif
  kustomize build . | levada validate -`,
		Args: atLeastOneArgument,
		RunE: func(cmd *cobra.Command, args []string) error { return f.validate(cmd, args) },
	}
	commandline.Output(cmd.Flags(), &f.format, "text", "json", "sarif", "github")
	cmd.Flags().BoolVar(&f.strict, "strict", false, "make errors of warnings")
	cmd.Flags().BoolVar(&f.runnable, "runnable", false, "also report what levada run could not start, or would ignore; with its --function and --secret-dir")
	cmd.Flags().StringArrayVar(&f.functions, "function", nil, "with --runnable: VERTEX=COMMAND, as for levada run")
	cmd.Flags().StringVar(&f.secretDir, "secret-dir", "", "with --runnable: directory of secrets, as for levada run")
	commandline.Enum(cmd.Flags(), &f.excerpt, "excerpt", "", "whether to print the line of each problem; auto prints it on terminals", "auto", "always", "never")
	return cmd
}

func (f *validateFlags) validate(cmd *cobra.Command, args []string) error {
	m := loadManifests(args, cmd.InOrStdin())
	problems := checkManifests(m, f.runnable)
	if f.runnable && !problems.HasErrors() {
		var err error
		if problems, err = checkStart(problems, m.objects, f.functions, f.secretDir); err != nil {
			return err
		}
	}
	if f.strict {
		warningsAreErrors(problems)
	}
	out := cmd.OutOrStdout()
	page := problemPage{problems: problems, manifests: len(m.objects)}
	if f.excerpt == "always" || f.excerpt == "auto" && commandline.IsTerminal(out) {
		page.lines = m.lines
	}
	if err := problemFormats[f.format](out, page); err != nil {
		return err
	}
	if problems.HasErrors() {
		return commandline.Problems()
	}
	return nil
}

// atLeastOneArgument makes a command without a file a usage error.
func atLeastOneArgument(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return commandline.Usagef("%s needs a file, a directory, or - for the standard input", cmd.Name())
	}
	return nil
}

// checkManifests adds to the problems of reading those of the contents.
func checkManifests(m manifests, runnable bool) manifest.Problems {
	problems := append(m.problems, manifest.Validate(m.objects)...)
	for _, o := range m.objects {
		problems = append(problems, manifest.Unsupported(o)...)
		if runnable {
			problems = append(problems, vertex.NotRunnable(o)...)
		}
	}
	problems.Sort()
	return problems
}

func warningsAreErrors(problems manifest.Problems) {
	for i := range problems {
		if problems[i].Severity == manifest.SeverityWarning {
			problems[i].Severity = manifest.SeverityError
		}
	}
}
