"""What several test files share: tiny projects, studies, models, servers, bad input."""
