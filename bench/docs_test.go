package bench_test

import (
	"testing"

	"go.elara.ws/chaistore/internal/docs"
)

func TestCommands(t *testing.T) { docs.Run(t, "bench") }
