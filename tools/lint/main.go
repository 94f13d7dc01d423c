// Command lint has the analyzers that run beside go vet and staticcheck. It is a tool of go vet:
//
//	go vet -vettool=$(GOWORK=off go -C tools tool -n lint) ./...
//
// so that go vet loads the packages, keeps the findings in the build cache and checks only what has changed. make check runs it.
//
// Why not golangci-lint (v2.15): from a clean cache it costs 3.0 CPU minutes to build and 1.8 to check the root module alone, and 211 modules; it took 6 minutes on 2 cores
// that others used as well. This program costs 5 CPU seconds to build beside staticcheck, six small modules more, and 1.9 CPU minutes for the first check of all modules, most
// of which is the compilation that the tests need anyway.
//
// An analyzer is here if its findings are faults, so that none has to be silenced. Not here, after a run over all modules:
//
//   - errorlint's comparison check: its 74 findings were comparisons with io.EOF where the contract of a Read is io.EOF itself, as package io does it.
//   - errorlint's check of %v: six findings, all decisions. With %w callers would act on an error that is only the reason of another one.
//   - nilerr: about 30 findings, all decisions. Bad input becomes a dead letter, a lost connection a state; the error is not the function's own.
//   - fatcontext, makezero: one finding each, both wrong.
//   - wastedassign: a default that a switch replaces is how this code reads; ineffassign finds the assignments that nothing can read.
//   - thelper: 455 findings about names and the first line of test helpers.
//   - usetesting's rule for temporary directories: Unix sockets need paths below 108 bytes, and t.TempDir is longer.
//   - contextcheck, containedctx: a goroutine that outlives a call has a context of its own here, in the struct that ends it; a person reviews that.
//   - copyloopvar, gosimple, unused, misspell: covered by the Go version, by staticcheck and by docs/english_test.go.
//   - depguard: internal/archtest has the import rules of all packages.
//   - funlen, gocyclo, lll: reviewed by a person; a limit that is met by cutting a function in two helps nobody.
package main

import (
	"codeberg.org/polyfloyd/go-errorlint/errorlint"
	"github.com/charithe/durationcheck"
	"github.com/golangci/rowserrcheck/passes/rowserr"
	"github.com/gordonklaus/ineffassign/pkg/ineffassign"
	"github.com/ldez/usetesting"
	"github.com/timakin/bodyclose/passes/bodyclose"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/atomicalign"
	"golang.org/x/tools/go/analysis/passes/deepequalerrors"
	"golang.org/x/tools/go/analysis/passes/nilness"
	"golang.org/x/tools/go/analysis/passes/reflectvaluecompare"
	"golang.org/x/tools/go/analysis/passes/sortslice"
	"golang.org/x/tools/go/analysis/passes/unusedwrite"
	"golang.org/x/tools/go/analysis/unitchecker"
)

func main() {
	unitchecker.Main(
		nilness.Analyzer,       // a nil that is dereferenced, a comparison that is always true
		unusedwrite.Analyzer,   // a field of a copy that is set and lost
		ineffassign.Analyzer,   // a value that nothing reads
		bodyclose.Analyzer,     // an HTTP response whose connection stays open
		rowserr.NewAnalyzer(),  // a query whose last error is not looked at: it would be taken for the end of the rows
		durationcheck.Analyzer, // a duration times a duration
		with(errorlint.NewAnalyzer(), map[string]string{"comparison": "false"}),   // type assertions that a wrapped error passes by
		with(usetesting.NewAnalyzer(), map[string]string{"osmkdirtemp": "false"}), // what testing.T has a method for, and ends by itself
		atomicalign.Analyzer,         // 64-bit atomics on 32-bit machines
		sortslice.Analyzer,           // sort.Slice of what is no slice
		reflectvaluecompare.Analyzer, // == of reflect.Value
		deepequalerrors.Analyzer,     // reflect.DeepEqual of errors
	)
}

// with sets flags of an analyzer. The reasons are above.
func with(a *analysis.Analyzer, flags map[string]string) *analysis.Analyzer {
	for name, value := range flags {
		if err := a.Flags.Set(name, value); err != nil {
			panic(err)
		}
	}
	return a
}
